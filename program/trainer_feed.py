"""Where a Trainer's training is in its data, to the batch and to the random number.

To go on in the middle of a pass over the data it has to be begun again in the same order, so the generators from before that
order was drawn are remembered. accelerate's loader has always fetched one batch more than it has given, and a collator may
draw random numbers for it (the masks of a masked language model): so the generators are also remembered from before each
batch that was fetched and not given yet. Whoever goes on begins the pass with the first, fetches what was fetched with the
second, and only then has the generators of the place itself. Batches that loader processes fetch are none of this: their
generators are not ours.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Callable, NamedTuple

from memsup import places


class FeedPlace(NamedTuple):
    """A place between two batches. Generators in it are as `places.taken` has them, or as JSON has them."""

    passes: int = 0
    """The passes that are over."""
    given: int = 0
    """The batches of this pass that the training was given."""
    begun_with: Any = None
    """The generators from before this pass was begun, the loader's own among them. It is None where it was not."""
    ahead: tuple[Any, ...] = ()
    """For each batch that was fetched and not given yet, the generators from before that."""

    def as_json(self) -> dict[str, Any]:
        begun_with = self.begun_with and states_as_json(self.begun_with)
        return {**self._asdict(), "begun_with": begun_with, "ahead": [states_as_json(each) for each in self.ahead]}


def states_as_json(states: dict[str, Any]) -> places.Generators:
    """Generators as JSON has them, whichever way they are given."""
    return states if isinstance(states["random"], list) else places.as_json(states)


class _Watched:
    """torch's fetcher of batches, which tells before it fetches one."""

    def __init__(self, fetcher: Any, before: Callable[[], None]) -> None:
        self._fetcher, self._before = fetcher, before

    def fetch(self, index: Any) -> Any:
        self._before()
        return self._fetcher.fetch(index)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fetcher, name)


class Feed:
    """What one `train()` draws its batches from. Belongs to the main thread."""

    def __init__(self, resumed: FeedPlace | None = None, generators: places.Generators | None = None) -> None:
        """`resumed` is the place to go on from, with the `generators` that the training had there. None means the beginning."""
        self._place, self._was_resumed = resumed or FeedPlace(), resumed is not None
        self._generators = generators
        """What the training had where it is to go on. It is None once it is there."""
        self._is_replaying = False
        """Whether a pass is begun again, to come to a place in its middle."""
        self._next = 0
        """Which batch of that pass is fetched next."""
        self._ahead: deque[places.Taken] = deque()
        self._watched: list[tuple[Any, str]] = []
        self._has_length = True

    @property
    def place(self) -> FeedPlace:
        """Where the training is, or is to go on. To be asked between two steps."""
        return self._place if self._generators is not None else self._place._replace(ahead=tuple(self._ahead))

    @property
    def counts_passes(self) -> bool:
        """Whether the passes have to be counted here: Trainer, gone on with, takes the rest of a data set without a length for
        its first pass.
        """
        return self._was_resumed and not self._has_length

    # -- the loader ---------------------------------------------------------------------------------------------------

    def watch(self, loader: Any) -> Any:
        """Looks on at what is fetched through `loader`, one of torch's or accelerate's; any other is left as it is. Returns
        it.
        """
        inner = getattr(loader, "base_dataloader", loader)
        self._has_length = _has_length(loader)
        begin = getattr(inner, "_get_iterator", None)
        if begin is None or "memsups_feed" in vars(loader):
            return loader
        inner._get_iterator = lambda: self._begin(inner, begin)
        loader.memsups_feed = self
        self._watched += [(inner, "_get_iterator"), (loader, "memsups_feed")]
        return loader

    def look_away(self) -> None:
        """Leaves the loaders as they were found."""
        for owner, name in self._watched:
            vars(owner).pop(name, None)
        self._watched.clear()

    def skip(self, skip: Callable[[Any, int], Any], loader: Any, count: int) -> Any:
        """The loader without its first `count` batches, as `skip` makes it. Trainer counts as if every pass over a data set
        without a length were one; where the training is gone on with, our count holds.
        """
        if self._generators is None:
            return skip(loader, count)
        rest = self.watch(skip(loader, self._place.given))
        self._next = 0 if getattr(rest, "skip_batches", 0) else self._place.given
        self._is_replaying = True
        return rest

    def _begin(self, inner: Any, begin: Callable[[], Any]) -> Any:
        """A pass begins, for which the loader has no iterator yet: one over it."""
        self._pass_begins(inner)
        stays = places.has_processes_that_stay(inner)
        were_begun = stays and self._place.passes > 0  # in the first pass; this one has drawn nothing for that
        iterator = places.begun_without_a_draw(inner, begin) if were_begun else begin()
        if stays:
            places.before_each_further_pass(iterator, lambda: self._pass_begins(inner))
        fetcher = getattr(iterator, "_dataset_fetcher", None)
        if hasattr(fetcher, "fetch"):
            iterator._dataset_fetcher = _Watched(fetcher, self._before_fetch)
        return iterator

    def _pass_begins(self, inner: Any) -> None:
        """The generators are those that the order of the pass is drawn with."""
        if self.counts_passes and hasattr(inner.dataset, "set_epoch"):
            inner.dataset.set_epoch(self._place.passes)
        if self._is_replaying:
            if self._place.begun_with is None:
                self.arrive()
            else:
                places.put_back(self._place.begun_with, inner)
        if not self._is_replaying:
            self._place = self._place._replace(given=0, begun_with=places.taken(inner))
            self._ahead.clear()

    def _before_fetch(self) -> None:
        if self._is_replaying:
            beyond = self._next - self._place.given
            self._next += 1
            if beyond < 0:
                return
            if beyond < len(self._place.ahead):
                places.put_back(self._place.ahead[beyond])
            else:
                self.arrive()
        self._ahead.append(places.taken())

    # -- the training -------------------------------------------------------------------------------------------------

    def arrive(self) -> None:
        """The training is where it is to go on, if it was not before: the generators are those that it had there."""
        if self._generators is not None:
            places.put_back(self._generators)
            self._generators, self._is_replaying = None, False

    def gave(self, count: int) -> None:
        """The training was given `count` batches."""
        self._place = self._place._replace(given=self._place.given + count)
        for _ in range(min(count, len(self._ahead))):
            self._ahead.popleft()

    def moved_on(self) -> None:
        """What was to be made up for at the place where the training goes on has drawn random numbers."""
        if self._generators is not None:
            self._generators = places.take()

    def pass_ended(self) -> None:
        """A pass over the data is over."""
        self._place = FeedPlace(self._place.passes + 1)
        self._ahead.clear()


def _has_length(loader: Any) -> bool:
    try:
        len(loader)
    except TypeError:
        return False
    return True
