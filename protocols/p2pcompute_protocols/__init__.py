"""The wire protocols of p2pcompute, sans-IO: no sockets, no clock, no randomness, no logging.

Each protocol is a package with its messages (frozen records), a transition table and a connection; its
specification, CDDL and test vectors lie in ``protocols/<name>/`` of the source tree. What they share:

    cbor.py        deterministic CBOR        wire.py       records and their maps
    envelope.py    COSE_Sign1                framing.py    length-prefixed frames
    connection.py  tables and dialogues      limits.py     every bound       ids.py, errors.py
"""
