"""What loops of a kernel execute, from the machine code that `cuobjdump -sass` lists."""

import re
from collections import Counter

LINE = re.compile(r"/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(?P<instruction>[^;]+);")
BRANCH = re.compile(r"BRA\b.*?0x(?P<target>[0-9a-f]+)")


def loops(listing: str) -> list[Counter[str]]:
    """How often each opcode, without its modifiers, stands in each loop; inner ones come first.

    A loop is what lies between a branch backwards and its target, both included. The branch to
    itself behind a kernel's end is none.
    """
    lines = [(int(line["address"], 16), line["instruction"]) for line in LINE.finditer(listing)]
    spans = [
        (int(branch["target"], 16), address)
        for address, instruction in lines
        if (branch := BRANCH.match(instruction)) and int(branch["target"], 16) < address
    ]
    return [
        Counter(re.split(r"[\s.]", code)[0] for address, code in lines if first <= address <= last)
        for first, last in sorted(spans, key=lambda span: span[1] - span[0])
    ]
