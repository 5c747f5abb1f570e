BEGIN TRANSACTION;
CREATE TABLE attempts (
	id INTEGER NOT NULL, 
	job VARCHAR NOT NULL, 
	kind VARCHAR NOT NULL, 
	error VARCHAR, 
	started VARCHAR NOT NULL, 
	seconds DOUBLE PRECISION NOT NULL, 
	cost JSON NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "attempts" VALUES(1,'minimum/seed=0','minimum',NULL,'2026-11-22T14:02:26+00:00',3.47170965800614794716e+00,'{"type": "cost", "losses": 63, "gradients": 63, "hvps": 0, "passes": 63.0}');
INSERT INTO "attempts" VALUES(2,'minimum/seed=1','minimum',NULL,'2026-11-22T14:02:30+00:00',1.8947744400065857917e-01,'{"type": "cost", "losses": 61, "gradients": 61, "hvps": 0, "passes": 61.0}');
INSERT INTO "attempts" VALUES(3,'characterise/m00','characterise',NULL,'2026-11-22T14:02:30+00:00',1.97020469997369218617e-01,'{"type": "cost", "losses": 5, "gradients": 1, "hvps": 47, "passes": 28.0}');
INSERT INTO "attempts" VALUES(4,'characterise/m01','characterise',NULL,'2026-11-22T14:02:30+00:00',1.6099972200026968494e-01,'{"type": "cost", "losses": 5, "gradients": 1, "hvps": 48, "passes": 29.0}');
INSERT INTO "attempts" VALUES(5,'connect/m00-m01','connect',NULL,'2026-11-22T14:02:31+00:00',4.62451858002168592065e-01,'{"type": "cost", "losses": 86, "gradients": 75, "hvps": 12, "passes": 145.0}');
CREATE TABLE level_sets (
	a VARCHAR NOT NULL, 
	b VARCHAR NOT NULL, 
	rows JSON NOT NULL, 
	method VARCHAR NOT NULL, 
	cost JSON NOT NULL, 
	seconds DOUBLE PRECISION NOT NULL, 
	PRIMARY KEY (a, b)
);
CREATE TABLE measures (
	minimum VARCHAR NOT NULL, 
	sampling JSON, 
	metrics JSON NOT NULL, 
	held_out JSON NOT NULL, 
	eigenvalues JSON, 
	trace JSON, 
	cost JSON NOT NULL, 
	seconds DOUBLE PRECISION NOT NULL, 
	file VARCHAR, 
	checksum VARCHAR, 
	spectrum JSON, 
	layers JSON, 
	PRIMARY KEY (minimum)
);
INSERT INTO "measures" VALUES('m00','{"type": "estimate", "value": 0.2223727687099578, "stderr": 0.018234073762667113, "interval": [0.18465271325187418, 0.2600928241680414], "samples": 24, "cost": {"type": "cost", "losses": 1, "gradients": 0, "hvps": 0, "passes": 1.0}, "level": 0.95, "method": "mean loss over examples; Student interval", "seed": null}','{"accuracy": {"type": "estimate", "value": 1.0, "stderr": 0.0, "interval": [0.8620237953250198, 1.0], "samples": 24, "cost": {"type": "cost", "losses": 1, "gradients": 0, "hvps": 0, "passes": 1.0}, "level": 0.95, "method": "mean of accuracy over examples; Wilson interval", "seed": null}}','{"loss": {"type": "estimate", "value": 0.9078213055066755, "stderr": 0.20290124727957293, "interval": [0.4880880961582697, 1.3275545148550814], "samples": 24, "cost": {"type": "cost", "losses": 1, "gradients": 0, "hvps": 0, "passes": 1.0}, "level": 0.95, "method": "mean loss over examples; Student interval", "seed": null}, "accuracy": {"type": "estimate", "value": 0.625, "stderr": 0.09882117688026186, "interval": [0.4270996244267428, 0.7884063244045123], "samples": 24, "cost": {"type": "cost", "losses": 1, "gradients": 0, "hvps": 0, "passes": 1.0}, "level": 0.95, "method": "mean of accuracy over examples; Wilson interval", "seed": null}}','{"values": [0.7843120558525922, 0.46592567444194694, 0.28189526728570075, 0.21351687901901703, 0.15717909544893616], "residuals": [6.577718621256102e-20, 3.2016338364885703e-16, 3.092165919076395e-12, 1.2967340195145715e-10, 3.6489401678272567e-08], "lower": [0.7843120558525898, 0.4659256744419442, 0.28189526728260617, 0.21351687888934123, 0.15717905895953208], "upper": [0.7843120558525947, 0.46592567444194966, 0.2818952672887953, 0.21351687914869283, 0.15717913193834024], "converged": [true, true, true, true, true]}','{"type": "estimate", "value": 2.6413669444842736, "stderr": 0.0, "interval": [2.6413669444842576, 2.6413669444842895], "samples": 26, "cost": {"type": "cost", "losses": 0, "gradients": 0, "hvps": 26, "passes": 2.0}, "level": 0.95, "method": "exact diagonal", "seed": 277859162004791}','{"type": "cost", "losses": 5, "gradients": 1, "hvps": 47, "passes": 28.0}',1.97020469997369218617e-01,'m00.vectors.safetensors','734a8081adb90a469da686f0f3b0055f',NULL,'[]');
INSERT INTO "measures" VALUES('m01','{"type": "estimate", "value": 0.22237276871911185, "stderr": 0.018234117680197892, "interval": [0.18465262241069397, 0.26009291502752974], "samples": 24, "cost": {"type": "cost", "losses": 1, "gradients": 0, "hvps": 0, "passes": 1.0}, "level": 0.95, "method": "mean loss over examples; Student interval", "seed": null}','{"accuracy": {"type": "estimate", "value": 1.0, "stderr": 0.0, "interval": [0.8620237953250198, 1.0], "samples": 24, "cost": {"type": "cost", "losses": 1, "gradients": 0, "hvps": 0, "passes": 1.0}, "level": 0.95, "method": "mean of accuracy over examples; Wilson interval", "seed": null}}','{"loss": {"type": "estimate", "value": 0.9078188870910241, "stderr": 0.2029005771410813, "interval": [0.488087064029709, 1.3275507101523392], "samples": 24, "cost": {"type": "cost", "losses": 1, "gradients": 0, "hvps": 0, "passes": 1.0}, "level": 0.95, "method": "mean loss over examples; Student interval", "seed": null}, "accuracy": {"type": "estimate", "value": 0.625, "stderr": 0.09882117688026186, "interval": [0.4270996244267428, 0.7884063244045123], "samples": 24, "cost": {"type": "cost", "losses": 1, "gradients": 0, "hvps": 0, "passes": 1.0}, "level": 0.95, "method": "mean of accuracy over examples; Wilson interval", "seed": null}}','{"values": [0.7843201616887654, 0.4659276107032248, 0.2818991511670174, 0.21351818212001328, 0.15718094107976358], "residuals": [1.18308416313e-19, 4.160071759919597e-17, 3.573485365372988e-13, 3.594965953877119e-10, 4.902261986144253e-08], "lower": [0.7843201616887627, 0.46592761070322214, 0.2818991511666574, 0.21351818176051404, 0.15718089205714106], "upper": [0.7843201616887681, 0.46592761070322747, 0.2818991511673774, 0.2135181824795125, 0.1571809901023861], "converged": [true, true, true, true, true]}','{"type": "estimate", "value": 2.64138694188961, "stderr": 0.0, "interval": [2.641386941889594, 2.641386941889626], "samples": 26, "cost": {"type": "cost", "losses": 0, "gradients": 0, "hvps": 26, "passes": 2.0}, "level": 0.95, "method": "exact diagonal", "seed": 132487372912309}','{"type": "cost", "losses": 5, "gradients": 1, "hvps": 48, "passes": 29.0}',1.6099972200026968494e-01,'m01.vectors.safetensors','ff723149ef4497723e38f99f085eda02',NULL,'[]');
CREATE TABLE minima (
	id VARCHAR NOT NULL, 
	position INTEGER NOT NULL, 
	origin VARCHAR NOT NULL, 
	seed BIGINT, 
	loss DOUBLE PRECISION NOT NULL, 
	gradient_norm DOUBLE PRECISION NOT NULL, 
	converged BOOLEAN NOT NULL, 
	norm DOUBLE PRECISION NOT NULL, 
	cost JSON NOT NULL, 
	seconds DOUBLE PRECISION NOT NULL, 
	file VARCHAR NOT NULL, 
	checksum VARCHAR NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (position)
);
INSERT INTO "minima" VALUES('m00',0,'trained',66430106323473,2.22372768709957813193e-01,4.55144571883917310392e-07,1,5.27059746158577802077e+00,'{"type": "cost", "losses": 63, "gradients": 63, "hvps": 0, "passes": 63.0}',3.47170965800614794716e+00,'m00.theta.safetensors','fdb3ad366f357d03ef962fc61882a14e');
INSERT INTO "minima" VALUES('m01',1,'trained',221780527711041,2.22372768719111879587e-01,8.28601637601313351783e-07,1,5.27059298753513427726e+00,'{"type": "cost", "losses": 61, "gradients": 61, "hvps": 0, "passes": 61.0}',1.8947744400065857917e-01,'m01.theta.safetensors','c9d86553b463c04899a3ecd108076d98');
CREATE TABLE paths (
	a VARCHAR NOT NULL, 
	b VARCHAR NOT NULL, 
	repeat INTEGER NOT NULL, 
	method VARCHAR NOT NULL, 
	times JSON NOT NULL, 
	losses JSON NOT NULL, 
	line_times JSON NOT NULL, 
	line_losses JSON NOT NULL, 
	maximum JSON NOT NULL, 
	barrier JSON NOT NULL, 
	line_maximum JSON NOT NULL, 
	normalised_length DOUBLE PRECISION NOT NULL, 
	converged BOOLEAN NOT NULL, 
	cost JSON NOT NULL, 
	seconds DOUBLE PRECISION NOT NULL, 
	file VARCHAR NOT NULL, 
	checksum VARCHAR NOT NULL, 
	PRIMARY KEY (a, b, repeat)
);
INSERT INTO "paths" VALUES('m00','m01',0,'string','[0.0, 0.04138719051219272, 0.08277438102438545, 0.12416157153657818, 0.1655487620487709, 0.20728926860758876, 0.24902977516640662, 0.2907702817252245, 0.3325107882840423, 0.3742624916902778, 0.4160141950965134, 0.43689004679963106, 0.4577658985027489, 0.47864175020586663, 0.4995176019089845, 0.5203438839008702, 0.5411701658927559, 0.5619964478846416, 0.5828227298765273, 0.6244752938602989, 0.6661278578440701, 0.7496312646565413, 0.8331346714690122, 0.9165673357345062, 1.0]','[0.2223727687099578, 0.22482014676387874, 0.23181976729769052, 0.24194773390371305, 0.2536945740108337, 0.2634803163693789, 0.270921268309483, 0.27403814078822186, 0.27476296669937894, 0.2799388829952443, 0.2865593404546789, 0.2900272902011112, 0.29342302925478986, 0.2966335861022585, 0.29955786228953285, 0.294591619746777, 0.2893221984330197, 0.2836013775049562, 0.27738863936858704, 0.26432142270749576, 0.2528000338498257, 0.24546505281936998, 0.23731941654076985, 0.2289897559153946, 0.22237276871911185]','[0.0, 0.0625, 0.125, 0.1875, 0.25, 0.3125, 0.375, 0.40625, 0.4375, 0.45312499999999994, 0.46875, 0.4765625, 0.48437500000000006, 0.4921875, 0.5, 0.515625, 0.5312499999999999, 0.546875, 0.5625, 0.5937500000000001, 0.625, 0.6875, 0.75, 0.8125, 0.875, 0.9375, 1.0]','[0.2223727687099578, 0.23075558163817556, 0.26124516131508446, 0.32067990863430074, 0.4003897261189889, 0.48164125168364225, 0.5512415021524273, 0.5777064893486118, 0.5964658063235908, 0.6025410664424999, 0.6062505668556354, 0.6071922809348864, 0.6075161909282931, 0.6072184596468205, 0.6062976675532209, 0.6025933135096997, 0.596440020040907, 0.5879129357824201, 0.5771251884511892, 0.5494095346152588, 0.5149510768037552, 0.43505795436757005, 0.3575695243905181, 0.2964023098292212, 0.254495474458133, 0.2302727774724874, 0.22237276871911185]','{"type": "bound", "lower": 0.29955786228953285, "upper": 0.2996770346954426, "lower_kind": "certified", "upper_kind": "certified", "cost": {"type": "cost", "losses": 7, "gradients": 0, "hvps": 0, "passes": 61.0}, "method": "interval enclosure of 18 sub-intervals"}','{"type": "bound", "lower": 0.0, "upper": 0.07730426597633075, "lower_kind": "certified", "upper_kind": "certified", "cost": {"type": "cost", "losses": 86, "gradients": 75, "hvps": 12, "passes": 145.0}, "method": "lower end: every path holds its ends; upper end: string"}','{"type": "bound", "lower": 0.6075161909282931, "upper": 0.6078790263196806, "lower_kind": "certified", "upper_kind": "certified", "cost": {"type": "cost", "losses": 4, "gradients": 0, "hvps": 0, "passes": 58.0}, "method": "interval enclosure of 18 sub-intervals"}',1.17425564320841635534e+00,0,'{"type": "cost", "losses": 86, "gradients": 75, "hvps": 12, "passes": 145.0}',4.62451858002168592065e-01,'m00-m01.path.safetensors','104edbf7676c061e3178f630acd877c9');
CREATE TABLE saddles (
	a VARCHAR NOT NULL, 
	b VARCHAR NOT NULL, 
	answer VARCHAR NOT NULL, 
	reason VARCHAR NOT NULL, 
	top JSON NOT NULL, 
	loss DOUBLE PRECISION NOT NULL, 
	gradient_norm DOUBLE PRECISION NOT NULL, 
	value JSON, 
	"index" JSON NOT NULL, 
	zero JSON NOT NULL, 
	flat DOUBLE PRECISION NOT NULL, 
	lowest JSON NOT NULL, 
	flatness DOUBLE PRECISION NOT NULL, 
	distance DOUBLE PRECISION NOT NULL, 
	cost JSON NOT NULL, 
	seconds DOUBLE PRECISION NOT NULL, 
	file VARCHAR NOT NULL, 
	checksum VARCHAR NOT NULL, 
	PRIMARY KEY (a, b)
);
CREATE TABLE survey (
	id INTEGER NOT NULL, 
	created VARCHAR NOT NULL, 
	config JSON NOT NULL, 
	identity JSON NOT NULL, 
	provenance JSON NOT NULL, 
	goal INTEGER NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "survey" VALUES(1,'2026-11-22T14:02:26+00:00','{"seed": 11, "minima": 2, "threads": 1, "epochs": 2, "batch_size": 64, "lr": 0.01, "tolerance": 1e-06, "max_gradients": 500, "eigenvalues": 5, "trace_samples": 32, "curvature_probes": 0, "curvature_passes": 60, "layers": true, "laws": false, "path_method": "auto", "images": 7, "path_gradients": 60, "searches_per_minimum": 2, "repeats": 1, "round_size": 8, "saddles": false, "saddle_gradients": 600, "levels": 0, "level_seeds": 2, "level_gradients": 300}','{"landscape": {"kind": "ModelLandscape", "dim": 26, "dtype": "float64", "label": null, "probe": 0.7000514433330116, "describe": {"kind": "network", "model": "Sequential", "parameters": {"0.weight": [4, 3], "0.bias": [4], "2.weight": [2, 4], "2.bias": [2]}, "tied": {}, "dim": 26, "dtype": "float64", "device": "cpu", "loss": "cross_entropy", "penalty": "0.01/2 |theta|^2", "batchnorm": null, "data": "tensors", "examples": 24, "weight": 24.0, "digest": "7bfdde9e2f7bfb2c6ad426914cd0fb9e", "memory cap": 2147483648}}, "held_out": {"kind": "ModelLandscape", "dim": 26, "dtype": "float64", "label": null, "probe": 0.6976724291521392, "describe": {"kind": "network", "model": "Sequential", "parameters": {"0.weight": [4, 3], "0.bias": [4], "2.weight": [2, 4], "2.bias": [2]}, "tied": {}, "dim": 26, "dtype": "float64", "device": "cpu", "loss": "cross_entropy", "penalty": "0.01/2 |theta|^2", "batchnorm": null, "data": "tensors", "examples": 24, "weight": 24.0, "digest": "ae088221a6e4d8ddf22219df4053a826", "memory cap": 2147483648}}}','{"landscape": {"kind": "ModelLandscape", "dim": 26, "dtype": "float64", "label": null, "probe": 0.7000514433330116, "describe": {"kind": "network", "model": "Sequential", "parameters": {"0.weight": [4, 3], "0.bias": [4], "2.weight": [2, 4], "2.bias": [2]}, "tied": {}, "dim": 26, "dtype": "float64", "device": "cpu", "loss": "cross_entropy", "penalty": "0.01/2 |theta|^2", "batchnorm": null, "data": "tensors", "examples": 24, "weight": 24.0, "digest": "7bfdde9e2f7bfb2c6ad426914cd0fb9e", "memory cap": 2147483648}}, "held_out": {"kind": "ModelLandscape", "dim": 26, "dtype": "float64", "label": null, "probe": 0.6976724291521392, "describe": {"kind": "network", "model": "Sequential", "parameters": {"0.weight": [4, 3], "0.bias": [4], "2.weight": [2, 4], "2.bias": [2]}, "tied": {}, "dim": 26, "dtype": "float64", "device": "cpu", "loss": "cross_entropy", "penalty": "0.01/2 |theta|^2", "batchnorm": null, "data": "tensors", "examples": 24, "weight": 24.0, "digest": "ae088221a6e4d8ddf22219df4053a826", "memory cap": 2147483648}}, "software": {"thalweg": "0.1.0", "torch": "2.13.0+cpu", "numpy": "2.4.6", "scipy": "1.17.1", "python": "3.11.7", "platform": "Linux"}}',2);
CREATE INDEX ix_attempts_job ON attempts (job);
COMMIT;
PRAGMA user_version = 4;
