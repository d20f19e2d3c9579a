"""Room of drivers: what jobs and the command line do as drivers of a Ray cluster, one function a verb.

Takes paths and names, gives plain JSON. It never changes a pipeline's state itself: it asks the controller.
"""
