"""The node program: publishes devices of every vendor as ResourceSlices and prepares the claims that use them."""
