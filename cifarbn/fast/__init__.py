"""What the device can do, and how a run makes use of it."""
