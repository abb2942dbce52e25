"""What all sites signed, and what one site keeps to itself: its file, its keys, its folders."""
