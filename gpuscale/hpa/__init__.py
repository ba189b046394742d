"""What the HorizontalPodAutoscaler does with our metrics, and the manifests made from one specification."""
