"""cifarbn: what the parts of a CIFAR-10 training run do to accuracy, speed and the smoothness of the loss."""

__version__ = "0.1.0"
