"""What faces Prefect. Importing it registers the block and the serializer."""

from cache_blocks.prefect.block import TieredCacheBlock
from cache_blocks.prefect.serializer import TieredCacheSerializer

__all__ = ["TieredCacheBlock", "TieredCacheSerializer"]
