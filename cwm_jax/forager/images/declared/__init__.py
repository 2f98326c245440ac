"""What a project's files declare of its tests: read as data, nothing of the project is executed.

One module for each kind of declaration; each gives `Declared`s of a `Project`.
"""
