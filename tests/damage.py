"""Files as broken disks and broken downloads leave them; the same damage each time."""

from random import Random


def damaged(content: bytes, number: int) -> bytes:
    """The content with some damage: cut off, bytes changed, a part lost, doubled, or set to zero."""
    draw = Random(number)
    start, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    kind = number % 5
    if kind == 0:
        return content[:start]
    if kind == 1:
        changed = bytearray(content)
        for _ in range(draw.choice((1, 10, 100))):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        return bytes(changed)
    middle = {2: b"", 3: 2 * content[start:end], 4: bytes(end - start)}[kind]
    return content[:start] + middle + content[end:]
