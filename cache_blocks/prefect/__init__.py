"""What faces Prefect. Importing it registers the block and the serializer, and lets key rings be read from blocks."""

from cache_blocks.prefect.block import TieredCacheBlock
from cache_blocks.prefect.key_ring import ring_in_block
from cache_blocks.prefect.serializer import TieredCacheSerializer
from cache_blocks.private.privacy import take_rings_from

take_rings_from(ring_in_block)

__all__ = ["TieredCacheBlock", "TieredCacheSerializer"]
