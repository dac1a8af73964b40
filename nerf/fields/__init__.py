"""What is at a point of space: the field interface and what neural fields share."""
