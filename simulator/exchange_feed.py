"""The Exchange feed: a frame a match, and a heartbeat a second for each product."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from websockets.asyncio.server import ServerConnection

from simulator.faults import Frame
from simulator.frames import Channel, error_frame, subscriptions_frame
from simulator.server import (
    Feed,
    Limits,
    Reader,
    RefusedError,
    Spawn,
    product_ids_in,
    read_fields,
)

_CHANNELS: tuple[Channel, ...] = ("matches", "heartbeat")


@dataclass(frozen=True)
class ClientMessage:
    """A subscribe or unsubscribe message: product ids by channel."""

    type: Literal["subscribe", "unsubscribe"]
    channels: Mapping[Channel, tuple[str, ...]]


def parse_client_message(message: str | bytes) -> ClientMessage:
    """Read a client's message; product ids stand in the channel objects, at the root, or in both.

    Raises:
        RefusedError: If it is none Coinbase would accept. The reasons "No channels provided" and
            "You need to specify at least one product ID" are Coinbase's (issue trackers of
            Krypto-trading-bot, coinbasepro-python); the wording of the others is ours.
    """
    fields = read_fields(message)
    failed = f"Failed to {fields['type']}"
    root_ids = product_ids_in(fields)
    listed = fields.get("channels")
    if not isinstance(listed, list) or not listed:
        raise RefusedError(failed, "No channels provided")
    channels: dict[Channel, tuple[str, ...]] = {}
    for entry in listed:
        channel = entry if isinstance(entry, dict) else {"name": entry}
        name = next((known for known in _CHANNELS if known == channel.get("name")), None)
        if name is None:
            raise RefusedError(failed, f"{channel.get('name')} is not a channel of this simulator")
        product_ids = (*root_ids, *product_ids_in(channel))
        if not product_ids and fields["type"] == "subscribe":
            reason = f"You need to specify at least one product ID for channel {name}"
            raise RefusedError(failed, reason)
        channels[name] = (*channels.get(name, ()), *product_ids)
    return ClientMessage(fields["type"], channels)


class MatchSource(Protocol):
    """What the Exchange feed serves from."""

    def refusal(self, product_id: str) -> str | None:
        """Return why a product can't be subscribed to, or None if it can."""

    def subscribed(self, reader: Reader, product_ids: Sequence[str]) -> None:
        """Begin to serve products that a reader has just added to its `matches` channel."""

    def heartbeat(self, product_id: str) -> bytes | None:
        """Return the product's heartbeat frame of this moment, if it has one."""


class ExchangeFeed(Feed[Reader]):
    """Coinbase's Exchange feed."""

    def __init__(self, limits: Limits, spawn: Spawn, source: MatchSource) -> None:
        super().__init__(limits, spawn)
        self._source = source

    def welcome(self, connection: ServerConnection) -> Reader:
        """Nothing is special about its readers."""
        return Reader(connection)

    def obey(self, reader: Reader, message: str | bytes) -> None:
        """Subscribe or unsubscribe; one bad product is refused, the others are served."""
        asked_for = parse_client_message(message)
        if asked_for.type == "unsubscribe":
            for channel, product_ids in asked_for.channels.items():
                products = reader.channels.get(channel, {})
                for product_id in product_ids or tuple(products):
                    products.pop(product_id, None)
            self._acknowledge(reader)
            return
        asked = {product_id for ids in asked_for.channels.values() for product_id in ids}
        refused = {product_id: self._source.refusal(product_id) for product_id in sorted(asked)}
        for reason in filter(None, refused.values()):
            self.send(reader, [error_frame("Failed to subscribe", reason)])
        before = reader.products("matches").copy()
        for channel, product_ids in asked_for.channels.items():
            accepted = [product_id for product_id in product_ids if refused[product_id] is None]
            if accepted:
                reader.channels.setdefault(channel, {}).update(dict.fromkeys(accepted))
        if reader.channels:
            self._acknowledge(reader)
        self._source.subscribed(reader, [p for p in reader.products("matches") if p not in before])

    def beat(self) -> None:
        """Send the heartbeats of each reader's products."""
        for reader in self.readers:
            frames = map(self._source.heartbeat, reader.products("heartbeat"))
            self.send(reader, filter(None, frames))

    def broadcast(self, frames: Iterable[Frame]) -> None:
        """Send each reader the frames of its products."""
        frames = list(frames)
        products = {frame.product_id for frame in frames}
        for reader in filter(lambda reader: reader.open, self.readers):
            subscribed = reader.products("matches")
            own = frames
            if not products <= subscribed.keys():
                own = [frame for frame in frames if frame.product_id in subscribed]
            self.send_counted(reader, own)

    def _acknowledge(self, reader: Reader) -> None:
        listed = {name: products for name, products in reader.channels.items() if products}
        self.send(reader, [subscriptions_frame(listed)])
