"""Small functions that programs need again and again."""
