"""The Gymnasium face of the simulator; importing it registers the environments."""

from gymnasium.envs.registration import register

from envs.observation import ObservationKind

FULL_ID = "numa_rl/NumaScheduling-v0"
CHAPTER_ID = "numa_rl/NumaSchedulingChapter-v0"

for _id, _kind in ((FULL_ID, ObservationKind.FULL), (CHAPTER_ID, ObservationKind.CHAPTER)):
    register(
        id=_id,
        entry_point="envs.scheduling_env:NumaSchedulingEnv",
        vector_entry_point="envs.vector_env:NumaSchedulingVectorEnv",
        kwargs={"observation": _kind.value},
    )
