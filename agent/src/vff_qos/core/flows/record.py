"""What is known of one live flow, as one number.

A node has up to some hundred thousand flows.  An object for each would cost 250 bytes, a number
costs 36, and nobody but the garbage collector would know the difference.  The number holds::

    bits  0-15  minor: whose class the flow is in, 0 for nobody's
    bits 16-18  rank of the word that decided it, see `vff_qos.core.claims.trust`
    bits 19-25  the flags below
    bits 26-41  our port
    bits 42-53  our address, as a number that the mirror gave it
    bits 54-    birth: milliseconds since the mirror began
"""

from __future__ import annotations

MINOR = 0xFFFF
RANK_SHIFT = 16
RANK = 7 << RANK_SHIFT

#: The class is not a user's but one of those that flows in doubt share.
RESTRICTED = 1 << 19
#: The mark was handed on in advance, by the first packet's address; no word has confirmed it.
PROVISIONAL = 1 << 20
#: The mark is other software's: never touched.
FOREIGN = 1 << 21
#: Another flow had the same tuple shortly before, or the birth is not known: a word counts only
#: if it is not older than the flow.
REUSED = 1 << 22
#: The flow is older than what we know of it.
VAGUE = 1 << 23
#: A repetition of the word that gave the flow away is known by its text.
REMEMBERED = 1 << 24
UDP = 1 << 25

END_SHIFT = 25
#: Protocol, our port and our address: with the client's end they name the flow.
END = ((1 << 29) - 1) << END_SHIFT
PORT_SHIFT, ADDRESS_SHIFT = 26, 42
MAX_ADDRESSES = 1 << 12
BIRTH_SHIFT = 54

#: What may stand beside a minor and a rank.
FLAGS = RESTRICTED | PROVISIONAL
#: All that a claim may change.
OWNED = MINOR | RANK | RESTRICTED | PROVISIONAL | REMEMBERED
#: A flow with none of these is nobody's, is certain, and may be given away without a second look;
#: one that is `REUSED` by a word that is not older than the flow.
NOT_PLAIN = MINOR | FOREIGN | VAGUE | RESTRICTED | PROVISIONAL


def rank(record: int) -> int:
    """The rank of the word that decided whose the flow is."""
    return record >> RANK_SHIFT & 7


def holder(record: int) -> int:
    """The minor of whoever has the flow for certain; 0 for nobody, or if it was handed on."""
    return 0 if record & PROVISIONAL else record & MINOR


def goes_to(record: int, our_port: int, number: int) -> bool:
    """Whether a flow goes to this port of ours at the address of this number in the mirror."""
    return port(record) == our_port and record >> ADDRESS_SHIFT & MAX_ADDRESSES - 1 == number


def port(record: int) -> int:
    """Our port."""
    return record >> PORT_SHIFT & 0xFFFF


def birth_ms(record: int) -> int:
    """When the flow was first seen, in milliseconds since the mirror began."""
    return record >> BIRTH_SHIFT


def owned(record: int, minor: int, word_rank: int, flags: int = 0) -> int:
    """The same flow in the class ``minor``, decided by a word of ``word_rank``."""
    return record & ~OWNED | minor | word_rank << RANK_SHIFT | flags


def unowned(record: int) -> int:
    """The same flow, nobody's."""
    return record & ~OWNED
