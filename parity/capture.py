"""Capturing what a program computes on the way: values by name, and functions replaced for a while."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

ATTENTION = ("causal_attention", "window_attention")
ATTENDING = ""  # among the modules under way, none of which has this name


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """The attribute of a module or class has another value while this is entered."""
    inherited = name not in vars(owner)
    original = None if inherited else vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        if inherited:
            delattr(owner, name)
        else:
            setattr(owner, name, original)


class Capture(dict[str, Any]):
    """Values by name in the order in which they are computed; the second of a name is "name#2".

    `readable` tells whether a value that is computed now can be read at the end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.readable: Callable[[], bool] = lambda: True
        self._running: list[str] = []  # the modules whose forward pass is under way, from the outermost

    def add(self, name: str, value: Any) -> None:
        """Adds an array, or the first of several, under the name, numbered if the name is taken."""
        if isinstance(value, list | tuple) and value:
            value = value[0]
        if not hasattr(value, "dtype") or not self.readable():
            return
        count = sum(key.split("#")[0] == name for key in self)
        self[f"{name}#{count + 1}" if count else name] = value

    def enter(self, name: str, args: Sequence[Any], options: Mapping[str, Any]) -> None:
        """A module begins: adds its input. Within itself, as where it calls its base class, it adds nothing."""
        if name not in self._running:
            self.add(f"{name}:in", next(iter([*args, *options.values()]), None))
        self._running.append(name)

    def leave(self, output: Any) -> None:
        """The module that began last ends: adds its output."""
        name = self._running.pop()
        if name not in self._running:
            self.add(name, output)

    @contextmanager
    def attention(self, kinds: Iterable[type]) -> Iterator[None]:
        """Adds q, k, v and the result y of attention called from code of these classes, as "module:q" and so on."""
        modules = {sys.modules.get(base.__module__) for kind in kinds for base in kind.__mro__}
        with ExitStack() as stack:
            for module in modules:
                for name in ATTENTION:
                    if attend := getattr(module, name, None):
                        stack.enter_context(replaced(module, name, self._capturing(attend)))
            yield

    def _capturing(self, attend: Callable) -> Callable:
        def attention(q: Any, k: Any, v: Any, *rest: Any, **options: Any) -> Any:
            if ATTENDING in self._running:  # attention that calls attention
                return attend(q, k, v, *rest, **options)
            module = self._running[-1] if self._running else "model"
            self._running.append(ATTENDING)
            try:
                y = attend(q, k, v, *rest, **options)
            finally:
                self._running.pop()
            for name, value in {"q": q, "k": k, "v": v, "y": y}.items():
                self.add(f"{module}:{name}", value)
            return y

        return attention
