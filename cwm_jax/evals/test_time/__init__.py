"""More tries at test time: many patches and many tests of each problem, and one patch chosen."""
