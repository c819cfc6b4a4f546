"""Messages of any client, as the broker delivers them by AMQP or by Redis."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from typing import Any

from kombu import Message
from kombu.transport.virtual.base import Base64
from kombu.transport.virtual.base import Message as VirtualMessage
from nonsense import Sent

from kit.channel import Channel


@dataclass
class Delivery:
    """A message that the broker delivers.

    Attributes:
        sent: What a client has sent.
        amqp: Whether it comes by AMQP. If not, as with Redis, all of it is in one piece of JSON,
            in which the body is in base64.
        redelivered: What the broker says of that.
    """

    sent: Sent
    amqp: bool = True
    redelivered: Any = False

    def message(self, channel: Any, tag: int) -> Message:
        sent = self.sent
        info = {"exchange": "", "routing_key": "celery", "redelivered": self.redelivered}
        if self.amqp:
            return Message(
                body=sent.body,
                delivery_tag=tag,
                content_type=sent.content_type,
                content_encoding=sent.content_encoding,
                delivery_info=info,
                properties={**sent.properties, "application_headers": sent.headers},
                headers=sent.headers,
                channel=channel,
            )
        properties = {"delivery_info": info, "delivery_tag": tag, "body_encoding": "base64"}
        return VirtualMessage(
            {
                "body": sent.body and b64encode(sent.body).decode(),
                "content-type": sent.content_type,
                "content-encoding": sent.content_encoding,
                "headers": sent.headers,
                "properties": {**sent.properties, **properties},
            },
            channel=channel,
        )


class BrokerChannel(Channel):
    """Stands in for a transport's channel whose deliveries kombu's consumer decodes."""

    def message_to_python(self, raw: tuple[Delivery, int]) -> Message:
        delivery, tag = raw
        return delivery.message(self, tag)

    def decode_body(self, body: Any, encoding: str) -> bytes:
        decoded: bytes = Base64().decode(body)
        return decoded
