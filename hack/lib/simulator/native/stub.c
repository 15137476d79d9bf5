/* An empty shared object: stands for a driver library that nothing here calls, and begins the state file. */
const char simulated_nvidia_driver[] = "simulated";
