"""Capturing what a program computes on the way: values by name, and functions replaced for a while."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

ATTENTION = ("causal_attention", "window_attention")


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
    """Values by name in the order in which they are computed; the second of a name is "name#2"."""

    def add(self, name: str, value: Any) -> None:
        """Adds a value under the name, numbered if the name is taken."""
        count = sum(key.split("#")[0] == name for key in self)
        self[f"{name}#{count + 1}" if count else name] = value

    @contextmanager
    def attention(self, kinds: Iterable[type], path: list[str]) -> Iterator[None]:
        """Adds q, k, v and the result y of attention called from code of these classes, as `path[-1]:q` and so on."""
        modules = {sys.modules.get(base.__module__) for kind in kinds for base in kind.__mro__}
        with ExitStack() as stack:
            for module in modules:
                for name in ATTENTION:
                    if attend := getattr(module, name, None):
                        stack.enter_context(replaced(module, name, self._capturing(attend, path)))
            yield

    def _capturing(self, attend: Callable, path: list[str]) -> Callable:
        def attention(q: Any, k: Any, v: Any, *rest: Any) -> Any:
            y = attend(q, k, v, *rest)
            for name, value in {"q": q, "k": k, "v": v, "y": y}.items():
                self.add(f"{path[-1]}:{name}", value)
            return y

        return attention
