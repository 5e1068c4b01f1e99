"""Moving the guests of a run: who moves when and where (pure), and driving several migrations at a time."""
