"""What a run would need and cost on devices that are not there."""
