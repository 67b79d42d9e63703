"""The commands of ``idinit``, a module each with ``run(args, console)``; needs rich."""

__all__: tuple[str, ...] = ()
