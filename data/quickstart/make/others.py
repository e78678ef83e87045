"""Conditions that only the pretraining text knows: none of their codes is in the quickstart notes.

`HAND` is written out: siblings of the quickstart's codes (the same joint, the same gland, another
stage), which share some of their templates, and common complaints. `families` turns the official titles of injuries and of joint, skin, eye
and ear diseases, which follow a pattern (`Contusion of left forearm, initial encounter`), into several
hundred more with the same few templates.
"""

import re

from conditions import (
    ATTACKS, BELLY, COLD_FIRST, COPING, CREATININE, EARACHE, ENTRY, FALL, FEAST, FILTER_STORY, MOOD, MOOD_SEEN,
    NIGHTS, PILLOWS, STILLNESS, STOOLS, TARGETS, WET, WINDED, sides,
)  # fmt: skip
from grammar import Condition


def plain(code, complaint, tell, show, **more):
    """A condition without a side."""
    return Condition({"": code}, complaint, tell, show, **more)


def either(right, left, complaint, tell, show, **more):
    """A condition of the right or the left."""
    return Condition(sides(right, left), complaint, tell, show, **more)


HAND = [
    # Gut
    plain("A04.5", STOOLS, ["[ate undercooked chicken three days ago|grilled chicken at a party]"], ["stool culture grows campylobacter", BELLY], vitals="fever", has="diarrhea fever abdomen"),
    plain("A08.11", "[sudden vomiting|vomiting and watery stools]", ["[half the ship was ill|three others at the nursing home are ill]"], ["stool norovirus PCR positive", BELLY], vitals="dry", has="diarrhea vomiting abdomen"),
    plain("K57.32", "[left lower belly pain|steady pain in the lower left belly]", ["[bowels slow for years|had a similar bout two years ago]"], ["tender mass feel in the left lower belly", "CT: [thick sigmoid wall with pouches and streaky fat|inflamed pouch, no air outside]"], vitals="fever", age=(40, 80), has="abdomen fever"),
    plain("K35.80", "[belly pain that moved to the lower right|pain in the right lower belly]", ["[started around the navel|hurts on every bump in the road]"], ["rebound in the right lower belly", "ultrasound: [blind tube 9 mm that does not compress|thick tubular structure]"], vitals="fever", age=(8, 40), has="abdomen fever vomiting"),
    plain("K85.10", "[upper belly pain through to the back|severe belly pain and vomiting]", ["[earlier brief attacks after fatty meals|does not drink at all]"], ["lipase <900-3200>", "CT: gland swollen, [small shadows in the biliary tract|main duct wide with a shadow]"], vitals="fast", bar="drink", has="abdomen vomiting liver"),
    plain("K80.20", "[pain under the right ribs after meals|brief attacks of right upper belly pain]", ["[gone within two hours each time|comes after fried food and goes by itself]"], ["belly soft now", "ultrasound: shadowing echoes in a thin wall, no fluid rim"], has="abdomen", sex="ffm"),
    plain("K21.9", "[burning behind the breastbone|sour taste at night]", ["[worse lying down after dinner|better with antacids]"], ["[upper belly a little tender|examination unremarkable]"], bar="gerd", has="chest abdomen"),
    plain("K59.00", "[hard stools twice a week|straining and few stools]", ["[drinks little water|takes iron tablets]"], ["[hard stool in the left belly|rectum full of hard stool]"], has="abdomen"),
    plain("K92.1", "[black tarry stools|black stools and faintness]", ["[takes naproxen daily|two aspirin a day for months]"], ["stool black, guaiac positive", "hemoglobin <8.0-10.5>"], vitals="dry", has="blood abdomen dizziness", bar="pain"),
    plain("K70.10", "[yellow eyes and poor appetite|swelling belly and yellow skin]", ["[a bottle of wine every evening|half a liter of vodka daily for years]"], ["AST <120-260>, ALT <50-90>", "[liver edge tender|spider veins on the chest]"], bar="drink", has="liver abdomen skin fever"),
    # Blood, glands, sugar
    plain("D50.8", "[tiredness|craving for ice]", ["[eats no meat and drinks much tea|lives on bread and tea], periods light"], ["hemoglobin <8.2-10.5>, MCV <66-77>[, ferritin <4-10>|]", "inner lids pale"], has="blood skin", age=(18, 70)),
    plain("D52.0", "[tiredness|sore mouth and tiredness]", ["[eats toast and tea only|no greens or fruit for a year]"], ["hemoglobin <8.2-10.5>, MCV <106-118>, cobalamin <300-500>, folate <1.0-2.2>"], has="blood"),
    plain("D62", "[faintness after surgery|weak and pale after a nosebleed]", ["[hip surgery two days ago|bled for hours from the nose]"], ["hemoglobin <6.8-8.4>, was 13 last week, MCV <86-94>"], vitals="fast", has="blood dizziness"),
    plain("E10.65", "[thirst and passing water all night|tiredness and constant thirst]", ["since childhood on insulin pump, [pump kinked for a day|forgot boluses at school]"], ["[fingerstick|glucose] <290-440>, A1c <9.4-13.2>", "ketones negative"], age=(9, 30), vitals="dry", bar="dm none", has="glucose urine"),
    plain("E10.649", "[a spell of shaking and sweating|sudden sweating and hunger]", ["on insulin since age six, [played soccer after the bolus|bolus taken but no meal]", "[better after juice|never passed out]"], ["[fingerstick|glucose] <36-56>, <110-160> after gel"], age=(9, 32), bar="dm none", has="glucose dizziness"),
    plain("E11.621", "[an open sore on the sole|a wound under the big toe]", ["on metformin for <8-20> years", "did not feel the nail in the shoe"], ["punched out wound under the forefoot, bone not felt", "A1c <8.0-10.5>, monofilament not felt"], bar="dm none", has="skin legs glucose", age=(48, 80)),
    plain("E11.9", "[yearly check|routine visit for medicines]", ["takes metformin, walks daily", "no trouble with feet or eyes"], ["A1c <6.3-6.9>, glucose <104-128>", "monofilament felt everywhere"], bar="dm none", has="glucose neuro", age=(45, 80)),
    plain("E04.2", "[a lump low in the neck|tight collar]", ["[swallowing is normal|sister has the same]"], ["gland uneven with several knots", "TSH <0.8-3.0>"], has="tsh neck", bar="thyroid", sex="ffm"),
    plain("E89.0", "[tiredness and feeling cold|weight gain and dry hair]", ["gland of the neck taken out <4-9> months ago, forgot the tablets"], ["TSH <18.0-64.0>, free T4 low", "scar low on the neck"], has="tsh neck", bar="thyroid", vitals="slow"),
    plain("E06.3", "[tiredness and feeling cold|fullness in the neck]", ["[sister and mother have the same|hair comes out in the brush]"], ["TSH <9.0-24.0>, peroxidase antibodies <300-900>", "gland firm and bumpy"], has="tsh neck", bar="thyroid", sex="fffm"),
    plain("E05.20", "[racing heart and sweating|weight loss and trembling hands]", ["[cannot stand warm rooms|lost <5-9> kg]"], ["TSH under 0.01", "several knots in the neck gland, eyes normal"], vitals="fast", has="tsh neck heart palpitations weight loss", bar="thyroid", age=(50, 80)),
    plain("E86.0", "[faintness and dry mouth|weak and thirsty]", ["[two days in the heat|vomited for two days and drank little]"], ["tongue dry, skin stays up in folds", "urea raised, sodium <146-152>"], vitals="dry", has="sodium dizziness vomiting"),
    plain("E87.6", "[weak legs and cramps|palpitations and weakness]", ["takes a water pill, [vomited for days|used laxatives]"], ["potassium <2.4-3.1>", "flat T waves"], has="potassium palpitations"),
    # Mind
    plain("F32.0", MOOD, ["[still works and meets friends|does all chores as before]", "[never felt like this before|no such time earlier in life]"], ["PHQ-9 score <6-9>, smiles at times, no wish to die"], bar="mood none"),
    plain("F32.2", MOOD, ["[stopped work and stays in bed|does not wash or eat without help]", "[never felt like this before|no such time earlier in life]"], ["PHQ-9 score <21-26>, barely speaks, thinks often of death, no voices"], bar="mood none"),
    plain("F33.0", MOOD, ["[still works and meets friends|does all chores as before]", "[third time in ten years|two such times before, well in between]"], ["PHQ-9 score <6-9>, smiles at times, no wish to die"], bar="mood none"),
    plain("F33.2", MOOD, ["[stopped work and stays in bed|does not wash or eat without help]", "[third time in ten years|two such times before, well in between]"], ["PHQ-9 score <21-26>, barely speaks, thinks often of death, no voices"], bar="mood none"),
    plain("F41.0", "[sudden spells of terror and pounding heart|spells of choking and fear of dying]", ["[out of the blue, peak in ten minutes|stopped taking the bus]"], ["ECG sinus, TSH <0.8-3.0>"], vitals="calm", has="palpitations tsh chest dizziness", bar="mood"),
    plain("F41.1", "[constant worry|worry and tense muscles]", ["[worries about bills, health, children most days|cannot relax for months]"], ["GAD-7 score <11-17>, restless hands"], bar="mood"),
    plain("F10.20", "[wants to stop drinking|shaky mornings until the first drink]", ["[needs ten beers a day to feel well|tried to stop four times]"], ["hands shake a little, GGT <120-400>"], bar="drink", has="liver"),
    # Head and nerves
    plain("G44.209", "[dull band of headache|pressing headache on both sides]", ["[like a tight hat, walks and works with it|neck muscles tense after desk work]"], ["neck muscles tender, fundi normal"], has="headache neck"),
    plain("G44.009", "[piercing pain behind one eye|stabbing pain around one eye]", ["same hour every night, <30-90> minutes, paces the room"], ["eye waters and lid droops during the attack"], has="headache", sex="mmf"),
    plain("G43.709", "[headache on most days|headache <16-24> days a month]", [ATTACKS.replace("[two|three|four] times a month", "more than half the month")], ["fundi and fields normal"], has="headache vomiting"),
    either("G56.21", "G56.22", "numb ring and little finger of the {side} hand", ["[leans on the elbow all day|worse with the elbow bent]", "the {other} hand feels normal"], ["tapping the {side} elbow groove brings on tingling", "[weak spreading of the {side} fingers|slow ulnar conduction]"], has="numbness neuro", bar="dm wrist"),
    either("G57.51", "G57.52", "burning {side} sole", [NIGHTS.replace("hand", "foot"), "the {other} foot is fine"], ["tapping behind the {side} inner ankle brings on tingling"], has="numbness neuro legs", bar="dm"),
    plain("G51.0", "[a drooping face|one half of the face does not move]", ["[woke up with it|water runs out of the mouth]"], ["forehead and mouth weak on one side, arms strong"], has="neuro numbness"),
    plain("G40.909", "[a fit at work|two spells of jerking]", ["[bit the tongue, slept for an hour after|third spell in a year]"], ["tongue bitten, EEG with sharp waves"], has="neuro"),
    plain("G47.33", "[loud snoring and sleepiness|falls asleep at red lights]", ["partner sees pauses in breathing"], ["neck 45 cm, <18-42> pauses an hour in the sleep study"], sex="mmf"),
    either("M54.31", "M54.32", "pain from the {side} buttock to the foot", ["[after lifting a crate|worse on sneezing]", "the {other} leg is fine"], ["lifting the {side} straight leg hurts at <30-50> degrees"], has="neuro spine legs", bar="hip"),
    # Ear, nose, throat, eye
    either("H65.01", "H65.02", "[dull hearing on the {side}|a full {side} ear]", [COLD_FIRST, "[no pain|turns the {other} ear to the voice]"], ["{side} drum [amber, drawn in, not red|with a fluid line, not red]", "{other} drum grey"], age=(2, 10)),
    either("H60.331", "H60.332", EARACHE, ["[swims every day|cleans with cotton buds]"], ["pulling the {side} ear hurts, canal swollen and moist, drum normal", "{other} ear normal"], age=(8, 40)),
    either("H61.21", "H61.22", "[dull hearing on the {side}|a blocked {side} ear]", ["[uses cotton buds|worse after a shower]"], ["brown plug fills the {side} canal", "{other} drum grey"]),
    either("H10.11", "H10.12", "[an itchy red {side} eye|a watering {side} eye]", ["[worse in the hay season|rubs it all day], sneezes"], ["{side} lid lining bumpy, clear discharge", "{other} eye white"], has="rash blurred"),
    either("H40.211", "H40.212", "[sudden pain and blurred sight in the {side} eye|{side} eye pain with halos]", ["[vomited twice|began in the dark cinema]"], ["{side} eye stony hard, cornea hazy, pupil wide", "{other} eye normal, pressure 15"], has="blurred headache vomiting", age=(50, 80)),
    either("H00.011", "H00.014", "a sore lump on the {side} upper lid", ["[began as an itch|rubs the eyes a lot]"], ["red tender lump at the {side} lid edge", "{other} lids normal"]),
    either("H81.11", "H81.12", "[brief spinning on turning over in bed|spinning when looking up]", ["lasts under a minute, worst on turning to the {side}"], ["eyes jerk when the head hangs to the {side}, not to the {other}"], has="dizziness neuro vomiting"),
    plain("J02.0", "[sore throat|pain on swallowing and fever]", ["no cough, [classmates ill|began overnight]"], ["tonsils red with white spots, rapid strep test positive"], vitals="fever", age=(5, 30), has="fever throat neck"),
    plain("J01.00", "[pressure in the cheeks|cheek pain and thick nose]", ["[got better, then worse after a cold|worse bending down]"], ["cheeks tender, thick yellow nose"], has="headache fever"),
    plain("B01.9", "[itchy spots|spots all over]", ["[two classmates have it|not vaccinated]"], ["spots, blisters and crusts of all ages on trunk and scalp"], vitals="fever", age=(2, 12), has="rash skin fever"),
    plain("B02.29", "[burning pain on the flank|pain in a band of the chest] that stayed", ["blisters healed <4-9> months ago, the pain did not"], ["pale scars in a band that stops at the midline, touch hurts"], age=(55, 84), has="skin rash"),
    plain("B00.1", "[tingling blisters on the lip|cold sores]", ["[after a sunny ski trip|comes back every winter]"], ["small cluster of vesicles at the lip edge"], has="rash skin"),
    # Chest
    plain("I48.21", "[uneven pulse|check of the uneven pulse]", ["in the same rhythm for <4-12> years, no more attempts to change it"], ["ECG uneven without P waves, rate <68-88>, same as last year"], has="palpitations heart", bar="clot", lasting="<2-9> years", age=(62, 84)),
    plain("I48.92", "[a racing heartbeat|sudden fast pulse]", ["[steady and fast, not uneven|began at rest]"], ["ECG saw-tooth waves, rate 150"], vitals="fast", has="palpitations heart", bar="clot"),
    plain("I47.10", "[a racing heartbeat|sudden fast pulse]", ["[starts and stops like a switch|stops with a cold face bath]"], ["ECG narrow, regular, rate <160-200>"], vitals="fast", has="palpitations heart", age=(18, 50)),
    plain("I50.23", WINDED, ["[known weak pump for years, gained <4-8> kg|left out the water pills of many years]"], [WET, "echo: ejection fraction <18-34>%, same as two years ago"], vitals="breathless", bar="htn", has="dyspnea cough swelling lungs heart legs chest neck", age=(55, 84)),
    plain("I50.33", WINDED, ["[known stiff heart for years, gained <4-8> kg|left out the water pills of many years]"], [WET, "echo: ejection fraction <56-68>%, same as two years ago"], vitals="breathless", bar="htn", has="dyspnea cough swelling lungs heart legs chest neck", age=(55, 84)),
    plain("I50.814", "[swollen legs and belly|swelling up to the thighs]", [PILLOWS.replace("sleeps on three pillows", "shoes no longer fit")], ["neck veins full, liver large, lungs clear", "echo: wide right ventricle"], bar="htn", has="swelling lungs heart legs abdomen liver neck"),
    plain("I21.4", "[pressure in the chest|heavy chest and left arm pain]", ["[began at rest|came on shoveling snow], <20-50> minutes"], ["troponin <140-900>, ECG without raised segments"], has="chest heart", age=(45, 82), lasting="<2-9> hours"),
    plain("I26.99", "[sudden breathlessness|sharp chest pain on breathing in]", [STILLNESS], ["CT: filling gaps in the lung arteries", "right heart normal on echo"], vitals="breathless", bar="clot", has="dyspnea chest lungs"),
    plain("I10", "[high readings at home|check of high readings]", ["[readings of <150-175> over 95 at home|head feels heavy in the morning]"], ["second reading the same after rest", "fundi normal"], vitals="high", bar="htn ckd", has="headache kidney"),
    either("I82.431", "I82.432", "[pain behind the {side} knee|swelling of the {side} calf]", [STILLNESS], ["{side} calf <3-6> cm larger than the {other}", "duplex: vessel behind the {side} knee does not compress, groin open"], has="swelling legs", bar="clot knee"),
    either("I82.441", "I82.442", "[{side} calf pain|tight {side} calf]", [STILLNESS], ["{side} calf tender", "duplex: deep vessel of the {side} shin without flow, knee and groin open"], has="swelling legs", bar="clot knee"),
    either("I80.01", "I80.02", "[a sore red cord on the {side} leg|a hard tender line on the {side} calf]", ["[long car ride|has ropy veins]"], ["tender red cord along the {side} inner calf, duplex: deep vessels open"], has="legs skin swelling", bar="clot"),
    plain("J44.9", "[breathlessness on stairs|morning cough]", ["<40-60> pack-years, no change this year"], ["FEV1 <48-66>% with low ratio, same as last year"], bar="lung none smoke", has="cough dyspnea lungs", lasting="<2-6> years", age=(55, 80)),
    plain("J44.0", "[more cough and breathlessness|thick phlegm and fever]", ["<40-60> pack-years, uses tiotropium", "phlegm turned green"], ["film: new shadow at the right base", "FEV1 <34-48>% with low ratio"], vitals="fever", bar="lung none smoke", has="cough dyspnea lungs fever", age=(55, 80)),
    plain("J45.21", "[wheeze and tight chest|cough at night and wheeze]", ["since childhood, blue inhaler [twice a month|less than weekly] before this"], ["wheeze on both sides, peak flow <60-75>% of best"], bar="lung none", has="cough dyspnea lungs chest", age=(8, 40)),
    plain("J45.51", "[wheeze and tight chest|cough at night and wheeze]", ["since childhood, [high dose inhaler and prednisone most months|wakes up every night even before this]"], ["wheeze on both sides, peak flow <30-42>% of best"], vitals="breathless", bar="lung none", has="cough dyspnea lungs chest", age=(16, 50)),
    plain("J45.40", "[check of the inhalers|routine visit for the lungs]", ["since childhood, uses budesonide-formoterol daily, symptoms most days"], ["lungs clear, peak flow <78-88>% of best"], bar="lung none", has="lungs cough dyspnea", age=(16, 50)),
    plain("J18.9", "[cough with fever|chills and rusty phlegm]", ["[a cold came first|sharp pain on breathing in]"], ["crackles at the right base", "film: shadow in the right lower lobe"], vitals="fever", has="cough fever lungs chest dyspnea"),
    plain("J20.9", "[cough after a cold|hacking cough]", ["[phlegm clear|partner had the same]"], ["coarse sounds that clear on coughing, film clear"], has="cough lungs"),
    # Kidney and bladder
    plain("N18.2", CREATININE, [FILTER_STORY, "the value [four|five|six] months ago was <64-84>"], ["eGFR <62-86>[, creatinine <1.0-1.1>|]", "urine albumin ratio <60-220>"], bar="htn dm pain family", has="kidney urine", lasting="<4-9> months"),
    plain("N18.5", CREATININE, [FILTER_STORY, "the value [four|five|six] months ago was <9-14>"], ["eGFR <8-13>[, creatinine <4.6-7.5>|]", "urine albumin ratio <300-900>"], bar="htn dm pain family", has="kidney urine", lasting="<4-9> months"),
    plain("N17.9", "[passes little water|raised creatinine]", ["[vomited for four days|took ibuprofen thrice daily for a week]"], ["creatinine <2.4-4.8>, was 0.9 last month", "kidneys of normal size"], vitals="dry", has="kidney urine", lasting="<2-5> days"),
    plain("N30.00", "[burning on passing water|running to the toilet all day]", ["[same two years ago|after the honeymoon]"], ["urine: white cells and nitrite, no red cells"], sex="f", has="dysuria urine"),
    plain("N30.01", "[burning on passing water|running to the toilet all day]", ["[urine pink|sees red drops]"], ["urine: white cells, nitrite and many red cells"], sex="f", has="dysuria urine"),
    plain("N10", "[fever and flank pain|chills and back pain]", ["burning on passing water first"], ["loin tender to tapping", "urine: white cells and nitrite"], vitals="fever", sex="ffm", has="dysuria urine fever spine"),
    plain("N20.0", "[dull flank ache|blood in the urine after a run]", ["[passed a small one before|drinks little]"], ["CT: <4-9> mm shadow in the lower kidney cup, ureters free"], has="urine spine"),
    plain("N20.1", "[waves of flank pain|pain from flank to groin]", ["[cannot lie still|vomited from pain]"], ["CT: <4-9> mm shadow halfway down the ureter", "urine: red cells"], vitals="fast", has="urine vomiting"),
    plain("N40.1", "[weak stream|up four times a night]", ["[waits to start|dribbles after]"], ["gland on rectal finger smooth and large, residual <80-200> ml"], sex="m", age=(55, 84), has="urine"),
    # Limbs and skin
    either("M10.061", "M10.062", "[sudden severe pain in the {side} knee|a red hot {side} knee]", [FEAST], ["{side} knee hot, red, full of fluid", "[needle crystals in the joint fluid|urate <8.2-10.6>]"], sex="mmmf", bar="urate knee family", has="swelling legs", age=(38, 76)),
    either("M10.041", "M10.042", "[sudden severe pain in the {side} hand|a red hot {side} finger joint]", [FEAST.replace("bed sheet", "touch")], ["{side} knuckles hot and red", "[needle crystals in the joint fluid|urate <8.2-10.6>]"], sex="mmmf", bar="urate wrist family", has="swelling", age=(38, 76)),
    either("M11.261", "M11.262", "[sudden pain in the {side} knee|a hot {side} knee]", ["[after an operation|began after a viral illness]"], ["{side} knee full of fluid, rhomboid crystals", "film: chalk line in the {side} cartilage"], bar="urate knee", has="swelling legs", age=(60, 84)),
    either("M17.11", "M17.12", "[{side} knee ache on stairs|stiff {side} knee in the morning]", ["[better after ten minutes|the {other} knee is good]"], ["{side} knee grates, film: narrow inner gap with spurs"], bar="knee", age=(52, 82), lasting="<2-8> years", has="legs"),
    either("M75.01", "M75.02", "[a stiff {side} shoulder|cannot reach the shelf with the {side} arm]", ["[pain at night first, now stiff|after a cast]"], ["{side} shoulder turns out only <5-20> degrees, {other} full"], bar="dm", lasting="<3-9> months"),
    either("L03.113", "L03.114", "[hot red {side} forearm|spreading redness of the {side} arm]", [ENTRY.replace("shin", "arm").replace("toes", "fingers")], ["{side} forearm hot, red and tender, <8-18> cm, no fluid to drain", "{other} arm normal"], vitals="fever", bar="dm", has="fever skin rash swelling"),
    either("L03.111", "L03.112", "[sore red {side} armpit|hot {side} armpit]", ["shaved last week, small cut"], ["{side} armpit hot and red, no fluid to drain", "{other} armpit normal"], vitals="fever", bar="dm", has="fever skin rash"),
    plain("L40.0", "[scaly patches|itchy plaques on elbows and knees]", ["[better in the sun|father has the same]"], ["thick silver scale on red plaques at elbows and knees"], has="rash skin", lasting="<2-9> years"),
    plain("L50.0", "[itchy wheals|welts all over]", ["[after a plate of shrimp|an hour after peanuts]"], ["raised pale wheals that fade under the finger and move"], has="rash skin"),
    plain("L23.7", "[itchy blisters in lines|itchy streaks on both arms]", ["cleared brush two days ago"], ["straight lines of small blisters"], has="rash skin"),
    either("S52.541A", "S52.542A", "[wrist pain after a fall|swollen wrist]", [FALL.replace("outstretched {side} hand", "back of the {side} hand").replace("palm", "bent hand")], ["{side} wrist tilted toward the palm, skin closed", "film: distal break, fragment tipped to the palm side"], bar="wrist", has="trauma swelling", lasting="<2-9> hours"),
    either("S52.541D", "S52.542D", "[cast check|wrist check in the cast]", ["fell on the bent {side} hand last month", "[pain much less|fingers move freely]"], ["{side} cast sits well", "film: callus, palm side fragment unchanged"], bar="wrist", has="trauma swelling", lasting="<3-6> weeks"),
    either("S82.61XA", "S82.62XA", "[{side} ankle pain after a twist|a swollen {side} ankle]", ["[rolled it on a stair|heard a crack]"], ["{side} outer ankle bone tender, film: break line at its tip"], has="trauma swelling legs", lasting="<2-9> hours"),
    either("S82.61XD", "S82.62XD", "[cast check|ankle check in the boot]", ["twisted the {side} ankle last month", "[pain much less|walks in the boot]"], ["{side} outer ankle not tender, film: callus, position as before"], has="trauma swelling legs", lasting="<3-6> weeks"),
]  # fmt: skip

INJURED = "[knocked it on a door|hit by a ball|fell off a ladder|bumped it at work|tripped in the yard]"
# Pattern of a title -> complaint, told, seen, encounter. `{site}` is the part of the body with its side.
PATTERNS = [
    (r"Contusion of (?P<site>(?:right|left) [a-z ]+), ", "[pain|a bump] at the {site}", "[blue and tender|swollen and purple], skin closed"),
    (r"Laceration without foreign body of (?P<site>(?:right|left) [a-z ]+), ", "[a cut|bleeding] at the {site}", "[clean|gaping] wound of <2-6> cm, nothing inside"),
    (r"Laceration with foreign body of (?P<site>(?:right|left) [a-z ]+), ", "[a cut|bleeding] at the {site}", "wound of <2-6> cm with [glass|a splinter] in it"),
    (r"Abrasion of (?P<site>(?:right|left) [a-z ]+), ", "[a scrape|raw skin] at the {site}", "skin scraped off, [oozes|dirty], nothing deep"),
    (r"Burn of first degree of (?P<site>(?:right|left) [a-z ]+), ", "[scalded|hot, sore] {site}", "red, dry, blanches, no blisters"),
    (r"Burn of second degree of (?P<site>(?:right|left) [a-z ]+), ", "[scalded|hot, sore] {site}", "moist red base with blisters"),
    (r"Unspecified sprain of (?P<site>(?:right|left) [a-z ]+), ", "[twisted|wrenched] {site}", "[swollen at the joint line|tender cords], film without break"),
    (r"Unspecified fracture of (?P<site>(?:right|left) [a-z ]+), ", "[pain and swelling|cannot use it after a fall]: {site}", "film: break line, skin closed"),
    (r"Displaced fracture of (?P<site>[a-z ]*(?:right|left) [a-z ]+), ", "[pain and swelling|bent after a fall]: {site}", "film: break with a gap, ends shifted, skin closed"),
    (r"Nondisplaced fracture of (?P<site>[a-z ]*(?:right|left) [a-z ]+), ", "[pain and swelling|sore after a fall]: {site}", "film: fine break line, ends in place, skin closed"),
]  # fmt: skip
ENCOUNTERS = {
    "initial encounter": "came straight here",
    "initial encounter for closed fracture": "came straight here",
    "initial encounter for fracture": "came straight here",
    "subsequent encounter": "[seen here for it before, check of healing|second visit for this]",
    "subsequent encounter for fracture with routine healing": "[cast for <3-6> weeks, heals as planned|check in the cast, callus seen]",
    "subsequent encounter for fracture with delayed healing": "[cast for <9-14> weeks, heals slowly|check in the cast, little callus yet]",
    "subsequent encounter for fracture with nonunion": "[<7-12> months on, gap still open|half a year in casts, no bridge]",
    "sequela": "[old injury, stiff since|happened <2-9> years ago, still sore]",
}
CHRONIC = [
    (r"Pain in (?P<site>(?:right|left) [a-z ]+)", "[ache|pain] of the {site}", "moves fully, [not swollen|no warmth], film normal"),
    (r"Stiffness of (?P<site>(?:right|left) [a-z ]+), not", "[stiff|hard to bend] {site}", "motion half of normal, not swollen"),
    (r"Effusion, (?P<site>(?:right|left) [a-z ]+)", "swollen {site}", "fluid wave, not hot, film normal"),
    (r"Primary osteoarthritis, (?P<site>(?:right|left) [a-z ]+)", "[ache on use|morning stiffness] of the {site}", "grates, film: narrow gap with spurs"),
    (r"Cutaneous abscess of (?P<site>(?:right|left) [a-z ]+)", "[a painful lump|a hot lump] at the {site}", "soft center that gives, pus on opening"),
    (r"Furuncle of (?P<site>(?:right|left) [a-z ]+)", "[a sore pimple|a red pimple] at the {site}", "red cone around a hair with a yellow tip"),
    (r"Pressure ulcer of (?P<site>(?:right|left) [a-z ]+), stage 2", "a sore at the {site}", "bedridden, shallow open skin, pink base"),
    (r"Pressure ulcer of (?P<site>(?:right|left) [a-z ]+), stage 3", "a sore at the {site}", "bedridden, deep hole down to fat"),
    (r"Idiopathic gout, (?P<site>(?:right|left) (?!ankle)[a-z ]+)", "[sudden pain|red hot swelling] of the {site}", "hot and red, needle crystals, urate <8.2-10.6>"),
    (r"Pathological fracture, (?P<site>(?:right|left) [a-z ]+), initial", "sudden pain of the {site} without a fall", "film: break through thin bone"),
    (r"Rheumatoid arthritis with rheumatoid factor of (?P<site>(?:right|left) [a-z ]+) without", "morning stiffness of the {site} for an hour", "boggy and warm, factor <60-200>, CRP <20-60>"),
]  # fmt: skip


def families(titles):
    """Conditions made from the official titles that fit a pattern, codes of the quickstart left out."""
    taken = {code for c in TARGETS + HAND for code in c.codes.values()}
    found = []
    for code, title in titles.items():
        if code in taken:
            continue
        for pattern, complaint, seen in PATTERNS:
            match = re.match(pattern, title)
            encounter = ENCOUNTERS.get(title[match.end() :]) if match else None
            if encounter:
                lasting = "<2-9> hours" if "initial" in title else "<3-12> weeks"
                found.append(from_title(code, match["site"], complaint, [INJURED, encounter], seen, lasting))
        for pattern, complaint, seen in CHRONIC:
            match = re.match(pattern, title)
            if match:
                found.append(from_title(code, match["site"], complaint, [], seen, "<2-9> weeks"))
    return found


def from_title(code, site, complaint, tell, seen, lasting):
    """One code of a family; the site names the side in plain words."""
    side = "right" if "right" in site else "left"
    return Condition(
        {side: code}, complaint.replace("{site}", site),
        tell + ["[the {other} one is fine|nothing on the {other} side|worse at night|no fever with it]"],
        [f"{site}: {seen}"], lasting=lasting, has="trauma swelling skin legs rash fever", bar="hip knee wrist arm",
    )  # fmt: skip
