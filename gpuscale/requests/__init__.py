"""What a request is: when it begins and ends, its labels, and the numbers that are kept of it."""
