"""The commands of ``idinit``, a module each with ``run(args, console)``."""

__all__: tuple[str, ...] = ()
