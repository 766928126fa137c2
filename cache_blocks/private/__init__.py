"""Private results: encrypted above the tiers, which keep them as they keep any other bytes.

- `ring`: the keys, and what is derived from them
- `sealing`: bytes and files to sealed ones and back
- `privacy`: what a call, its names and its result become when its kind is private
- `files`: the same for contents of files
"""
