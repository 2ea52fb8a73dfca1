"""One Dagster concept a file; nothing below imports it."""

import warnings

# Dagster warns of itself: it copies a sensor with a parameter that it calls new, and nobody who runs us can do anything.
warnings.filterwarnings("ignore", message=r"Parameter `owners` of initializer `SensorDefinition")
