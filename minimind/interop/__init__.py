"""What other projects made, used here. Each module imports the other project on first use."""
