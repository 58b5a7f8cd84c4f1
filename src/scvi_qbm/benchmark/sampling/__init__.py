"""The paper's Figure 2: samplers and minimisers against each other; ``parts`` is the front."""
