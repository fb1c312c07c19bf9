"""Where and how the work is done: device, memory, processes, and the clock."""
