"""Many runs on one machine or a cluster: reading a list of jobs, running them on Ray, and the page of their results."""
