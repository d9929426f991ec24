"""What this package assumes of the insides of other libraries: one file per library, one test per assumption."""
