"""The version of this library: the one place where it stands, which the package's metadata takes it from."""

__all__ = ["__version__"]

__version__ = "0.1.0"
