"""The assets of a code location. Conditions, checks and sensors lie beside this folder."""
