"""What can be chosen about audio; all of it is part of a result's key."""

from pydantic import BaseModel, ConfigDict, Field


class AudioOptions(BaseModel):
    """How recordings are normalised, and how much of one is accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target_lufs: float = Field(
        default=-23.0, ge=-70, le=-5, description="Integrated loudness to reach, LUFS (EBU R 128)"
    )
    max_gain_db: float = Field(
        default=30.0, ge=0, description="Most amplification in dB, so that noise is not made speech"
    )
    ceiling_dbfs: float = Field(default=-1.0, lt=0, description="No sample gets larger than this, dB below full scale")
    trim_silence: bool = Field(default=True, description="Cut silence at both ends")
    silence_below_lu: float = Field(
        default=30.0, gt=0, description="This far below the recording's loudness is silence, LU"
    )
    keep_silence_seconds: float = Field(default=0.2, ge=0, description="Silence to leave at each end")
    max_duration_seconds: float = Field(default=6 * 3600.0, gt=0, description="A longer recording is refused")
    max_decoded_bytes: int = Field(default=64 * 1024**3, gt=0, description="Decoding stops here: the end of a bomb")


class ChunkOptions(BaseModel):
    """Where long audio may be cut."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_seconds: float = Field(default=600.0, ge=2, description="No chunk is longer")
    min_silence_seconds: float = Field(default=0.4, ge=0.1, description="A shorter pause is not a place to cut")
    silence_dbfs: float = Field(
        default=-45.0, lt=0, description="Quieter than this is silence; normalised speech is near -23"
    )
