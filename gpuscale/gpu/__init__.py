"""What a GPU is: identities and readings, where they come from, and the thread that takes them."""
