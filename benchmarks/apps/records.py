"""How workers write down what they do, and those who measure read it. Pure."""

from __future__ import annotations

import struct

#: A call of the body: when it ended, and how many messages it was for.
BODY = struct.Struct("<dI")
#: How long one message has waited, from just before it was sent until its body has it.
WAIT = struct.Struct("<d")
