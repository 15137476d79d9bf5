import sys
from cluster import tools
for n in sys.argv[1:]:
    print(tools.build(*n.split("=")))
