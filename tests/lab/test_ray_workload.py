from lab.ray_workload import report


def event(kind, at=0.0, name="repeatable", number=0, **more):
    return {"event": kind, "at": at, "name": name, "number": number, **more}


def test_repeated_failed_and_missing_tasks_are_told_apart():
    events = [
        *[event("task-submitted", number=number) for number in range(3)],
        event("task-submitted", name="once", number=0),
        event("task-started", 1, number=0),
        event("task-done", 2, number=0, host="node-1", count=0),
        event("task-started", 2, number=1),
        event("task-started", 5, number=1),
        event("task-done", 6, number=1, host="node-2", count=0),
        event("task-failed", 7, name="once", number=0, error="NodeDiedError: dead"),
        event("task-missing", 8, number=2),
    ]
    found = report(events)
    assert (found.submitted, found.done, found.missing) == (4, 2, 1)
    assert found.by_host == {"node-1": 1, "node-2": 1}
    assert found.errors == ("once 0: NodeDiedError: dead",)
    assert found.repeated == ("repeatable 1",)
    assert found.longest_gap_s == 4


def test_an_actor_that_counts_anew_was_restarted():
    counts = {"counter-1": [1, 2, 1, 2, 1], "counter-2": [1, 2, 3]}
    events = [
        event("call-done", name=name, count=count, host="node-1")
        for name, seen in counts.items()
        for count in seen
    ]
    assert report(events).actors_restarted == {"counter-1": 2, "counter-2": 0}
