class Renderer:
    def __init__(self, core, mode):
        pass

    def reset(self):
        pass

    def record(self, *a):
        pass

    def render(self, state):
        return None
