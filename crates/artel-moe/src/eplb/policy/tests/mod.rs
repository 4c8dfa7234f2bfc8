mod greedy;
