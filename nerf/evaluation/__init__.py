"""Figures of finished runs, a row a workspace: agreement with the prompt, Janus problem, surface, photographs."""
