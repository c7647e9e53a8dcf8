"""Many machines as one engine: controller, node agents, and the coordinators of jobs."""
