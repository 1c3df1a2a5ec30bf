"""What one would use instead of Holdfast, each in a file of its own, and Holdfast itself."""
