"""The mathematics of the paper: pure functions of arrays, without networks or devices."""
