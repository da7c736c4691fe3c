"""The campaign: inputs by the thousand, kills, full disks and writers at once, against the product.

    python -m campaign                       everything, at full size (make campaign)
    python -m campaign --family pictures     one family
    python -m campaign --family pictures --seed 3 --only 1207    one case again, in full

A *family* is a stream of cases, made from a seed by hypothesis and by damage done to valid files.
Each case ends in a result, which an oracle of the case checks, or in one clear line and status 2;
anything else (a traceback, a hang, a file half-written, memory without bound, a wrong answer) is a
failure, which is recorded and does not stop the campaign.
"""
