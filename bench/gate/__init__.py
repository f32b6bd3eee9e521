"""Did a commit make anything slower or larger? Two commits, measured in turns on one machine."""
