"""What the benchmarks time: this project and its peers, each behind one function.

A builder takes a Workload, makes all that it needs, and returns a function that does the work a
number of times and returns when it is done. Any other code can be timed by a builder of its own:
`--peer NAME=module:function`.
"""
