from llmgym.baselines.sarathi import SarathiServe
