"""Replay's shards as the controller sees them: where segments go, who is lost, what they report.

Segments are never opened here: a collect report says how many bytes its payload has, an add report
what became of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.control.call_book import CallBook, RunFailed
from launch.control.fleet import Fleet
from launch.control.runtime import Call, CallFailed, Child
from replay_service import AddReport, merge_stats


@dataclass(slots=True)
class Account:
    """Bytes of one shard."""

    pushed: int = 0  # stored so far, evicted or not
    in_flight: int = 0
    held: int = 0
    is_serving: bool = True


# A source keeps its shard until that is this many payloads ahead of another: segments share the
# frames of their overlap only with those before them in the same shard.
PAYLOADS_AHEAD = 4


class ShardBook:
    """Decides which shard the next payload goes to, so that all get as many bytes.

    Pushed and not held bytes, once shards are full: a ring that can hold a little less than the
    others would otherwise get every segment from then on, and the others would grow stale.
    """

    def __init__(self, n_shards: int) -> None:
        self.accounts = [Account() for _ in range(n_shards)]
        self._homes: dict[str, int] = {}

    def choose(self, source: str, n_bytes: int) -> int:
        """The shard that `source` sent to before, unless too many bytes were pushed to that.

        Else the first of those with the fewest bytes pushed and in flight; some shard must serve.
        """
        serving = [i for i, account in enumerate(self.accounts) if account.is_serving]
        load = {i: self.accounts[i].pushed + self.accounts[i].in_flight for i in serving}
        emptiest = min(serving, key=load.__getitem__)
        home = self._homes.get(source)
        if home not in load or load[home] - load[emptiest] > PAYLOADS_AHEAD * n_bytes:
            home = self._homes[source] = emptiest
        return home

    def sent(self, shard: int, n_bytes: int) -> None:
        self.accounts[shard].in_flight += n_bytes

    def stored(self, shard: int, n_bytes: int, report: AddReport) -> None:
        """`n_bytes` that were sent have been answered."""
        account = self.accounts[shard]
        account.in_flight -= n_bytes
        account.pushed += report.n_bytes
        account.held = report.n_bytes_held

    def lose(self, shard: int) -> None:
        """It is gone with all it held, and gets nothing before it is back.

        What is in flight stays: the successor may answer it.
        """
        in_flight = self.accounts[shard].in_flight
        self.accounts[shard] = Account(in_flight=in_flight, is_serving=False)

    def welcome(self, shard: int) -> None:
        """It is back, and was empty when it began: it starts behind the others by what they hold.

        So it gets the next segments until it has caught up, and not all that were ever pushed.
        """
        account = self.accounts[shard]
        others = [a for i, a in enumerate(self.accounts) if i != shard and a.is_serving]
        level = min((other.pushed - other.held for other in others), default=0)
        account.pushed = level + account.held
        account.is_serving = True

    def others_hold(self, shard: int) -> bool:
        """Whether a shard besides this one serves and holds something."""
        return any(a.is_serving and a.held for i, a in enumerate(self.accounts) if i != shard)

    @property
    def n_serving(self) -> int:
        return sum(account.is_serving for account in self.accounts)


class ReplayShards:
    """Every call of the controller to replay goes through here."""

    def __init__(self, calls: CallBook, fleet: Fleet, n_shards: int) -> None:
        self._calls = calls
        self._fleet = fleet
        self.book = ShardBook(n_shards)
        self.n_lost = 0
        self._adds: dict[Call, tuple[int, Child]] = {}  # bytes and sender
        self._stats: list[Mapping[str, float]] = [{}] * n_shards
        self._carried: Counter[str] = Counter()  # totals of shards that were lost

    @property
    def serving(self) -> list[Child]:
        accounts = zip(self._fleet.replays, self.book.accounts, strict=True)
        return [child for child, account in accounts if account.is_serving]

    # ------------------------------------------------------------------ segments

    def add(self, payload: object, n_bytes: int, sender: Child) -> None:
        """Forwards a payload of that many bytes, which `sender` played, unopened."""
        shard = self.book.choose(sender.name, n_bytes)
        call = self._calls.issue(self._fleet.replays[shard], "add", payload)
        self._adds[call] = (n_bytes, sender)
        self.book.sent(shard, n_bytes)

    def added(self, call: Call, report: AddReport) -> Child:
        """Returns whose payload it was."""
        n_bytes, sender = self._adds.pop(call)
        self.book.stored(call.child.index, n_bytes, report)
        return sender

    def send_again(self, call: Call) -> None:
        """What was on its way to a shard that died goes to another, if it was a payload.

        It may have been stored and only the answer lost; then it is gone with the shard. So it is
        held and counted once.
        """
        if call.method == "add":
            n_bytes, sender = self._adds.pop(call)
            self.book.accounts[call.child.index].in_flight -= n_bytes
            self.add(call.args[0], n_bytes, sender)

    def forget(self, call: Call) -> None:
        """A payload is gone: the node that held it went before a shard had it."""
        n_bytes, _ = self._adds.pop(call)
        self.book.accounts[call.child.index].in_flight -= n_bytes

    # ------------------------------------------------------------------ losses

    def may_lose(self, child: Child) -> bool:
        """Whether the run can go on without what `child` held."""
        return self.book.others_hold(child.index)

    def lose(self, child: Child) -> None:
        """Counts `child` out, with what it held; calls in flight are left alone."""
        shard = child.index
        self.n_lost += self.is_serving(child)
        self.book.lose(shard)
        self._carried.update({n: v for n, v in self._stats[shard].items() if _is_carried(n)})
        self._stats[shard] = {}

    def is_serving(self, child: Child) -> bool:
        return self.book.accounts[child.index].is_serving

    def welcome(self, child: Child) -> None:
        """`child` answers again, empty."""
        self.book.welcome(child.index)

    # ------------------------------------------------------------------ figures

    def ask_stats(self) -> None:
        """Asks those for figures that have not been asked yet.

        With several shards also for a sign of life: one that died while nobody waited for it may
        be back before anybody notices, and says so by another process id.
        """
        methods = ("ping", "stats") if len(self._stats) > 1 else ("stats",)
        for child in self.serving:
            for method in methods:
                if not self._calls.n_in_flight(method, child=child):
                    self._calls.issue(child, method)

    def told(self, child: Child, stats: Mapping[str, float]) -> dict[str, float]:
        """Takes one shard's figures; returns those of all."""
        self._stats[child.index] = stats
        merged = merge_stats(self._stats)
        for name, total in self._carried.items():
            merged[name] += total
        if len(self._stats) > 1:
            merged["replay_shards_alive"] = float(self.book.n_serving)
            merged["replay_shards_lost"] = float(self.n_lost)
        return merged

    def figures_now(self) -> dict[str, float]:
        """Those of all shards that answer."""
        serving, merged = self.serving, {}
        for child, stats in zip(
            serving, self._calls.ask_each(serving, "stats", [()] * len(serving)), strict=True
        ):
            if not isinstance(stats, CallFailed):
                merged = self.told(child, stats)
        return merged

    # ------------------------------------------------------------------ checkpoints

    def save(self, folder: Path, previous: Path | None) -> list[CallFailed]:
        """Every serving shard saves below `folder`, all at once; returns who failed.

        previous: an older one of such folders, whose frames may be shared
        """
        serving = self.serving
        folders = []
        for shard in (child.index for child in serving):
            older = None if previous is None else self._folder(previous, shard)
            folders.append((self._folder(folder, shard), older))
        answers = self._calls.ask_each(serving, "save", folders)
        return [answer for answer in answers if isinstance(answer, CallFailed)]

    def load(self, folder: Path, state: Mapping[str, object] | None) -> None:
        """Takes back what `save` and `state` gave; a shard that was lost then starts empty.

        `state` is None in checkpoints older than shards. Raises RunFailed.
        """
        accounts = [Account(**a) for a in state["accounts"]] if state else [Account()]
        n_shards = len(self.book.accounts)
        if len(accounts) != n_shards:
            raise RunFailed(
                f"{folder.parent} holds {len(accounts)} replay shards, but replay.num_shards is "
                f"{n_shards}; give --replay.num-shards {len(accounts)} to go on"
            )
        self.book.accounts = accounts
        if state:
            self._carried.update(state["carried"])
        serving = self.serving
        folders = [(self._folder(folder, child.index),) for child in serving]
        for answer in self._calls.ask_each(serving, "load", folders):
            if isinstance(answer, CallFailed):
                raise RunFailed(str(answer)) from answer
        for shard, account in enumerate(accounts):
            if not account.is_serving:
                self.book.welcome(shard)

    def state(self) -> dict[str, object]:
        """For a checkpoint, when nothing is in flight."""
        accounts = [asdict(account) | {"in_flight": 0} for account in self.book.accounts]
        return {"accounts": accounts, "carried": dict(self._carried)}

    def _folder(self, folder: Path, shard: int) -> Path:
        return folder / f"shard-{shard}" if len(self._stats) > 1 else folder


def _is_carried(name: str) -> bool:
    """Whether it counts what one shard did since the run began; batches are counted by all."""
    return name.endswith("_total") and name != "replay_sample_total"
