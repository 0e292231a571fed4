"""Device detection, accelerated layers, and fast training steps."""
